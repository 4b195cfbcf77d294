-- Sends signed deliveries in turn, each with a delivery id of its own.
-- wrk … -- FILE PREFIX: FILE holds "SIGNATURE LENGTH\nBODY" again and again.

-- What stands before and after the delivery id of each request; made once, so that the client costs little.
local heads, tails, count, prefix = {}, {}, 0, ""

function init(args)
   prefix = args[2]
   local file = assert(io.open(args[1], "rb"))
   while true do
      local line = file:read("*l")
      if not line then break end
      local signature, length = line:match("^(%S+) (%d+)$")
      local whole = wrk.format("POST", nil, {
         ["Content-Type"] = "application/json",
         ["User-Agent"] = "GitHub-Hookshot/5fb4f5c",
         ["X-GitHub-Event"] = "push",
         ["X-GitHub-Delivery"] = "@",
         ["X-Hub-Signature-256"] = signature,
      }, file:read(tonumber(length)))
      local at = whole:find("@", 1, true)
      heads[#heads + 1], tails[#tails + 1] = whole:sub(1, at - 1), whole:sub(at + 1)
   end
   file:close()
end

function request()
   local which = count % #heads + 1
   count = count + 1
   -- Spread over all values, as GitHub's random ids are, and never the same one twice.
   local spread = string.format("%08x", count * 2654435761 % 4294967296)
   return heads[which] .. spread .. "-" .. prefix .. tails[which]
end

function done(summary, latency)
   local errors = summary.errors
   io.write(string.format("done %d %d %d %d %d\n", summary.requests, summary.duration,
      errors.status + errors.connect + errors.read + errors.write + errors.timeout,
      latency:percentile(50), latency:percentile(99)))
end
