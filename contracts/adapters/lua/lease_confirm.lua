-- uses: base, delete
-- The processes of an ended lease are gone: subtract exactly what was added, and forget the lease.
-- KEYS  P
-- ARGV  id, token
-- reply OK | GONE (already confirmed) | FENCED | NO (has not ended)
-- keys  P:lease:<id> HASH, P:quar ZSET, P:dev:<id> HASH, P:dev:<id>:leases SET, P:node:<n>:leases SET,
--       P:tenant:<t> HASH, P:ended:<id> STRING ttl 10 min
local lease = redis.call('HMGET', P .. ':lease:' .. ARGV[1], 'tok', 'state')
if not lease[1] then return {'GONE'} end
if lease[1] ~= ARGV[2] then return {'FENCED'} end
if lease[2] ~= 'quarantine' then return {'NO', lease[2]} end
delete_lease(ARGV[1])
return {'OK'}
