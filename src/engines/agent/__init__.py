"""What an agent that talks with a user must find again: its sessions and what belongs to them.

Owns five kinds of records, each its user's alone, and each on the backend that its own route names:

    sessions.Sessions           session_store: conversations
        create(context, SessionInput)                     get, delete(context, session_id)
        patch(context, session_id, SessionPatch)          list(context)
    messages.Messages           session_store: what was said in them
        append(context, session_id, MessageInput)         list(context, session_id)
    checkpoints.Checkpoints     checkpoint_store: states of the agent in a session
        save(context, session_id, CheckpointInput)        get(context, checkpoint_id)
        list(context, session_id)
    forks.Forks                 sessions that go on from a checkpoint
        fork(context, checkpoint_id, ForkInput)
    traces.Traces               trace_store: what a turn did, span by span
        record(context, session_id, TraceInput)           get(context, trace_id)
        list(context, session_id)
    memory.AgentMemory          agent_memory_store: what is known beyond a session
        set(context, tier, key, AgentMemoryInput)         get, delete(context, tier, key)
        list(context, tier)
    telemetry.Telemetry         telemetry_store: tokens, counted
        count(context, TokensInput)                       report(context, TokensQuery)

Messages, checkpoints and traces of a session are numbered (`agent/sequences.py`). Leaves running an agent,
and calling a model, to whoever does: this is what they read and write. Methods take contexts, conditions,
requests and windows as those of `engines.stores` do, and give the same.
"""
