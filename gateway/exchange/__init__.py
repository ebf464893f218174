"""One app request and its one logical response: the pure core of the gateway.

1. `document`    the body is parsed strictly, and only what was parsed goes on
2. `inspection`  every place where a tool or an approval can hide is found
3. `enforcement` servers are replaced by registered ones, the app's wishes overridden
4. `machine`     says Forward; the sender, outside, opens credentials and calls Azure
5. `sse`         bytes become frames, frames become events; approval requests are recognised
6. `machine`     says Hold when a round ends with requests; outside, policy or people decide
7. `machine`     takes each Decided; denial, expiry and approval are the same event
8. `resume`      writes the next round's body; the machine says Forward again
9. `stitching`   makes one response of all rounds: one id, one numbering, usage summed

Nothing here does I/O, reads a clock or knows a secret.
"""
