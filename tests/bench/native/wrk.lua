-- Prints what tests/bench/http_load.py reads: requests, bytes, microseconds, and failures.
function done(summary)
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format("result %d %d %d %d\n", summary.requests, summary.bytes, summary.duration, failed))
end
