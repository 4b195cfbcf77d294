-- Sends signed deliveries in turn, each with a delivery id of its own.
-- wrk … -- FILE SECOND: FILE holds "SIGNATURE LENGTH\nBODY" again and again; the first push is made at SECOND.

-- What stands before and after the delivery id of each request; made once, so that the client costs little.
local heads, tails, count, second = {}, {}, 0, 0

function init(args)
   second = tonumber(args[2])
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
   -- GitHub's ids are UUIDs of version 1: the time in units of 100 ns, its lowest part first. A push every second.
   local ticks = (second + count) * 10000000
   local low, rest = ticks % 4294967296, math.floor(ticks / 4294967296)
   local time = string.format("%08x-%04x-1%03x", low, rest % 65536, 0x1f0 + math.floor(rest / 65536))
   return heads[which] .. time .. "-8b2e-5e0f4d2c7a91" .. tails[which]
end

function done(summary, latency)
   local errors = summary.errors
   io.write(string.format("done %d %d %d %d %d\n", summary.requests, summary.duration,
      errors.status + errors.connect + errors.read + errors.write + errors.timeout,
      latency:percentile(50), latency:percentile(99)))
end
