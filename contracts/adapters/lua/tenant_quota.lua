-- uses: base
-- Limit, or stop limiting, the compute that a tenant's leases may hold together.
-- KEYS  P
-- ARGV  tenant, compute at most ("" for no limit)
-- reply OK
-- keys  P:tenant:<t> HASH max, used
local key = P .. ':tenant:' .. ARGV[1]
if ARGV[2] ~= '' then
  redis.call('HSET', key, 'max', ARGV[2])
else
  redis.call('HDEL', key, 'max')
  if (redis.call('HGET', key, 'used') or '0') == '0' then redis.call('DEL', key) end
end
return {'OK'}
