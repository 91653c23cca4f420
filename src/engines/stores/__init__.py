"""The stores: one file a domain, written once on core, knowing no backend.

Each is made of `(places, ids, clock)`. Every method takes the request's context first, asks for its
permission, finds its place, and stamps the context's identity on what it writes:

    notes.Notes
        create(context, NoteInput)            get(context, note_id)         list(context, NoteFilter)
        replace(context, note_id, NoteInput)  delete(context, note_id)
    memory.SessionMemory
        set(context, session_id, key, MemoryInput)        get, delete(context, session_id, key)
        list(context, session_id)
    tables.Tables
        put(context, table, pk, sk, TableRowInput)        get, delete(context, table, pk, sk)
        list(context, table, pk)
    budget.Budget
        record(context, UsageInput)           usage(context, UsageFilter)   summary(context, SummaryQuery)
        reserve(context, ReservationInput)    settle(context, reservation_id, SettlementInput)
        release(context, reservation_id)      policy(context)               put_policy(context, PolicyInput)
        check(context, amount, provider=)     close()
    blackboard.Blackboard
        put(context, run_id, key, BlackboardInput)        get(context, run_id, key, version=)
        list(context, run_id)                             versions(context, run_id, key)
    strategy_locks.StrategyLocks
        approve, reject(context, lock_id, LockDecisionInput)                in_force(context, action, at_s=)
    kpis.Kpis
        measure(context, kpi_id, MeasurementInput)        reading, measurements(context, kpi_id)
    temperature.Temperatures
        reading(context)
    firearms.Firearms
        facts_of(context, action, subject, at_s=)         take, undo(context, action, subject, use_id=)
    realtime.RealtimeRegistry
        put(context, room_kind, room_id, user_id, RoomMemberInput)
        get, delete(context, room_kind, room_id, user_id)
        list(context, room_kind, room_id)
    approvals.Approvals
        request(context, ApprovalInput)                   answer(context, approval_id, AnswerInput)
        get(context, approval_id)                         list(context, ApprovalFilter)
    events.EventSpine
        append(context, [NewEvent])           get(context, event_id)        list(context, EventFilter)
        follow(context, after=)               verify(context, expected=)    close()
        append_system(context, [SystemEvent], look_everywhere=)
    events.EventStreams
        append(context, stream_id, [NewEvent], expected_position=)          close()
        list(context, stream_id, EventFilter)             follow(context, stream_id, after=)

Changes also take `request=` (`core.idempotency.Request`, from the Idempotency-Key) and, but for creating a
note and appending, `condition=` (`core.records.Condition`, from If-Match and If-None-Match; versions without
their quotes). They give `scoped.Change(record, created, replayed)`, `scoped.Deletion(replayed)` or
`events.AppendedEvents(events, replayed)`. A record's `etag` is the header's value, quotes included.

Lists take `window=Window(limit, after, descending)` and give `Listed(items, after)` (`core.listing`).
`follow` is awaited, so that a bad place to begin is refused at once, and gives an async generator of tuples
of events.

An `…Input`, and `NewEvent` and its relatives, is a request's body: decode into it directly. What msgspec
then complains of, `scoped.invalid_body` turns into Invalid. Stores check bodies again by the same types, for
callers in process.
"""
