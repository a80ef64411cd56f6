-- uses: base
-- Remove a node that is gone for good, with its devices.
-- KEYS  P
-- ARGV  node
-- reply OK | GONE | NO detail (it is not dead, or leases are left)
-- keys  P:nodes ZSET, P:node:<n> HASH, P:node:<n>:{devs, leases} SET, P:devs SET, P:dev:<id> HASH
local node = ARGV[1]
local key = P .. ':node:' .. node
local state = redis.call('HGET', key, 'state')
if not state then return {'GONE'} end
if state ~= 'dead' then return {'NO', node .. ' is ' .. state} end
local left = redis.call('SCARD', key .. ':leases')
if left > 0 then return {'NO', left .. ' leases are not confirmed yet'} end
for _, device in ipairs(redis.call('SMEMBERS', key .. ':devs')) do
  redis.call('DEL', P .. ':dev:' .. device)
  redis.call('SREM', P .. ':devs', device)
end
redis.call('DEL', key, key .. ':devs')
redis.call('ZREM', P .. ':nodes', node)
event('node', 'node', node, 'detail', 'forgotten')
return {'OK'}
