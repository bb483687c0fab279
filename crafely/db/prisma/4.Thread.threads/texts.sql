-- What of threads can be compared only when it is opened.
select id, instructions
from threads
