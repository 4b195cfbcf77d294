-- Sends signed deliveries in turn, each with a delivery id of its own.
-- wrk … -- FILE PREFIX: FILE holds "SIGNATURE LENGTH\nBODY" again and again.

local deliveries, count, prefix = {}, 0, ""

function init(args)
   local file = assert(io.open(args[1], "rb"))
   prefix = args[2]
   while true do
      local line = file:read("*l")
      if not line then break end
      local signature, length = line:match("^(%S+) (%d+)$")
      deliveries[#deliveries + 1] = { signature = signature, body = file:read(tonumber(length)) }
   end
   file:close()
end

function request()
   count = count + 1
   local delivery = deliveries[(count - 1) % #deliveries + 1]
   return wrk.format("POST", nil, {
      ["Content-Type"] = "application/json",
      ["User-Agent"] = "GitHub-Hookshot/5fb4f5c",
      ["X-GitHub-Event"] = "push",
      ["X-GitHub-Delivery"] = prefix .. "-" .. count,
      ["X-Hub-Signature-256"] = delivery.signature,
   }, delivery.body)
end

function done(summary, latency)
   local errors = summary.errors
   io.write(string.format("done %d %d %d %d %d\n", summary.requests, summary.duration,
      errors.status + errors.connect + errors.read + errors.write + errors.timeout,
      latency:percentile(50), latency:percentile(99)))
end
