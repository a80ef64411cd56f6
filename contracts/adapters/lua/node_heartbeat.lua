-- uses: base
-- The agent lives. It gets every lease of its node that is not deleted, and runs exactly those that have not ended.
-- KEYS  P
-- ARGV  node, incarnation, stats (JSON)
-- reply msgpack: [OK, [[id, expires, [field, value, …]], …]] | [GONE] | [FENCED] | [DEAD]
-- keys  P:nodes ZSET heartbeat ms, P:node:<n> HASH, P:node:<n>:leases SET, P:lease:<id> HASH, P:lexp ZSET
local node = ARGV[1]
local key = P .. ':node:' .. node
local known = redis.call('HMGET', key, 'inc', 'state')
if not known[1] then return cmsgpack.pack({'GONE', {}}) end
if known[1] ~= ARGV[2] then return cmsgpack.pack({'FENCED', {}}) end
-- Its leases have ended and may be confirmed without it: it must end its workers and register again.
if known[2] == 'dead' then return cmsgpack.pack({'DEAD', {}}) end
redis.call('ZADD', P .. ':nodes', fmt(now_ms()), node)
redis.call('HSET', key, 'stats', ARGV[3])
if known[2] == 'suspect' then
  redis.call('HSET', key, 'state', 'ready')
  event('node', 'node', node, 'detail', 'ready')
end
local leases = {}
for _, id in ipairs(redis.call('SMEMBERS', key .. ':leases')) do
  leases[#leases + 1] = {id, redis.call('ZSCORE', P .. ':lexp', id) or '0', redis.call('HGETALL', P .. ':lease:' .. id)}
end
return cmsgpack.pack({'OK', leases})
