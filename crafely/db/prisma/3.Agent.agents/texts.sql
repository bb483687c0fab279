-- What of agents can be compared only when it is opened or, as JSON, understood.
select id, instructions, context, tools::text as tools_json
from agents
