-- wrk: post the body of the file BENCH_BODY with the app key BENCH_KEY; print one JSON line.
local file = assert(io.open(os.getenv("BENCH_BODY"), "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
wrk.headers["Content-Type"] = "application/json"
wrk.headers["api-key"] = os.getenv("BENCH_KEY")

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    'JSON {"seconds":%.3f,"requests":%d,"p50_us":%d,"p99_us":%d,"errors":%d}\n',
    summary.duration / 1e6, summary.requests, latency:percentile(50), latency:percentile(99),
    errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
