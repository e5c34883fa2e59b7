"""The HTTP server: OpenAI's interface, for many requests at once, over one engine.

    app, server          routes, errors, signals       guard, settings   who may ask, and how much
    chat_completions …   one module an endpoint: reads a request, writes what its client expects
    openai_types         the fields that are supported; whatever is not there is refused by name
    neutral              fields that routers add, with the value that changes nothing
    openai_ask ─► ask    a request as an `Ask`, the same for every interface, and its `Work`
    web, page/           the chat at `/`: files, and the headers that fence them in
    service              from the event loop to the scheduler and back
    scheduler            whose turn it is: `slots` over logits, `streams` over engines that sample
    notify               what systemd is told
    job, reply           what goes in and comes out; an answer put together from its events

Another interface is a module that makes an `Ask` of its requests and reads a `Reply`; it knows
nothing of slots, and the scheduler nothing of HTTP.
"""
