-- uses: base, lease
-- The model is loaded and warm: reserved -> active. Again while active: replaces what is bound.
-- KEYS  P
-- ARGV  id, token, ttl ms, bound (JSON: pids, MIG ids)
-- reply OK expires | GONE | FENCED | EXPIRED | DRAINING
-- keys  P:lease:<id> HASH, P:lexp ZSET exp ms
local id = ARGV[1]
local lease, refusal = current_lease(id, ARGV[2])
if not lease then return {refusal} end
if lease[2] == 'draining' then return {'DRAINING'} end
local now = now_ms()
local before = expires_at(id)
if before <= now then return {'EXPIRED'} end
-- The start limit has done its work: from here on the ttl counts, unless an earlier renewal was given more.
local expires = now + tonumber(ARGV[3])
if lease[2] == 'active' then expires = math.max(before, expires) end
redis.call('HSET', P .. ':lease:' .. id, 'state', 'active', 'bound', ARGV[4])
redis.call('ZADD', P .. ':lexp', fmt(expires), id)
if lease[2] ~= 'active' then event('bind', 'lease', id, 'node', lease[3]) end
return {'OK', fmt(expires)}
