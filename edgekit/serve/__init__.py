"""The HTTP server: OpenAI's and Anthropic's interfaces, for many requests at once, over one engine.

    app, server          routes, errors, signals       guard, settings   who may ask, and how much
    endpoints, openapi   a row for each path, and the document made of them
    chat_completions …   one module an endpoint: writes what its client expects
    *_types, fields      the fields that are supported; whatever is not there is refused by name
    neutral              fields that routers add, with the value that changes nothing
    *_ask ─► ask         a request as an `Ask`, the same for every interface, and its `Work`
    web, page/           the chat at `/`: files, and the headers that fence them in
    service              from the event loop to the scheduler and back
    scheduler            whose turn it is: `slots` over logits, `streams` over engines that sample
    notify               what systemd is told
    job, reply, blocks   what goes in and comes out; an answer put together from its events
    *_answers            the shape of what is answered, for the document

Another interface is a module that makes an `Ask` of its requests and reads a `Reply`; it knows
nothing of slots, and the scheduler nothing of HTTP.
"""
