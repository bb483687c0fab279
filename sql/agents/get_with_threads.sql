-- sql/agents/get_with_threads.sql
-- One of the user's live agents with its live threads, newest first, in one statement.
-- returns: maybe Agent
-- reads: replica
-- uses: threads_user_id_agent_id_created_at_id_idx, agents_user_id_id_key
select
    a.id, a.name, a.instructions, a.tools, a.context, a.created_at, a.updated_at,
    coalesce(t.threads, '[]') as threads
from agents a
left join lateral (
    select jsonb_agg(
        jsonb_build_object(
            'id', n.id,
            'agentId', n.agent_id,
            'name', n.name,
            'storageId', n.storage_id,
            'model', n.model,
            'createdAt', n.created_at,
            'updatedAt', n.updated_at
        )
        order by n.created_at desc, n.id desc
    ) as threads
    from (
        select id, agent_id, name, storage_id, model, created_at, updated_at
        from threads
        where user_id = a.user_id
            and agent_id = a.id
            and deleted_at is null
        order by created_at desc, id desc
        limit :take
    ) n
) t on true
where a.id = :id
    and a.user_id = :user_id
    and a.deleted_at is null;
