-- uses: base, lease
-- End the leases that have expired, oldest first. Anybody may call it.
-- KEYS  P
-- ARGV  how many at most
-- reply OK id…
-- keys  P:lexp ZSET exp ms, and those of lease_release
local now = now_ms()
local ended = redis.call('ZRANGEBYSCORE', P .. ':lexp', '-inf', fmt(now), 'LIMIT', 0, ARGV[1])
for _, id in ipairs(ended) do end_lease(id, now, 'expired') end
return {'OK', unpack(ended)}
