"""The status page on the watchdog's port, for whoever has no Grafana at hand: what is, live, and what was decided.

    loop (every 50 ms)     live.take       references to what is immutable anyway, and two small copies: LiveView
    an HTTP thread         feed.Feed       a LiveView as JSON sections, made at most four times a second for all readers
    a thread a reader      stream.Streams  server-sent events: the sections that this reader has not got yet

The loop never waits for a reader and encodes nothing for one.
"""
