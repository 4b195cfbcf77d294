-- One line with the figures of a run.
function done(summary, latency)
   local errors = summary.errors
   io.write(string.format("done %d %d %d %d %d\n", summary.requests, summary.bytes, summary.duration,
      errors.status + errors.connect + errors.read + errors.write + errors.timeout, latency:percentile(99)))
end
