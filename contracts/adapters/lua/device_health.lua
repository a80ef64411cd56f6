-- uses: base, lease
-- The agent says how a device is. Any change but an improvement raises its gen; the leases of a lost device end.
-- KEYS  P
-- ARGV  node, incarnation, device, health
-- reply OK | GONE | FENCED | PLACE (the device is not on this node)
-- keys  P:node:<n> HASH inc, P:dev:<id> HASH health, gen, P:dev:<id>:leases SET, and those of lease_release
local inc = redis.call('HGET', P .. ':node:' .. ARGV[1], 'inc')
if not inc then return {'GONE'} end
if inc ~= ARGV[2] then return {'FENCED'} end
local dev = P .. ':dev:' .. ARGV[3]
local known = redis.call('HMGET', dev, 'node', 'health')
if known[1] ~= ARGV[1] then return {'PLACE'} end
if known[2] == ARGV[4] then return {'OK'} end
local now = now_ms()
redis.call('HSET', dev, 'health', ARGV[4])
if ARGV[4] ~= 'ok' then redis.call('HSET', dev, 'gen', next_token(now)) end
event('device', 'node', ARGV[1], 'detail', ARGV[3] .. ' ' .. ARGV[4])
for _, id in ipairs(ARGV[4] == 'lost' and redis.call('SMEMBERS', dev .. ':leases') or {}) do
  if redis.call('HGET', P .. ':lease:' .. id, 'state') ~= 'quarantine' then end_lease(id, now, 'device lost') end
end
return {'OK'}
