-- uses: base, lease
-- Go on holding a lease, and learn what should be drained. A reserved lease keeps its start limit; one that is being
-- revoked is not renewed beyond its revocation. An expiry never moves back, so the holder's belief stays inside it.
-- KEYS  P
-- ARGV  id, token, ttl ms
-- reply OK state expires_in_ms revoke_at ("" for none) now {wanted "topic/partition"} {lost} | GONE | FENCED | EXPIRED
-- keys  P:lease:<id> HASH, P:lexp ZSET exp ms, P:lease:<id>:parts SET owned, P:lease:<id>:want SET wanted
local id = ARGV[1]
local lease, refusal = current_lease(id, ARGV[2])
if not lease then return {refusal} end
local now = now_ms()
local expires = expires_at(id)
if expires <= now then return {'EXPIRED'} end
if lease[2] ~= 'reserved' then
  local until_ms = now + tonumber(ARGV[3])
  if lease[4] then until_ms = math.min(until_ms, tonumber(lease[4])) end
  if until_ms > expires then
    expires = until_ms
    redis.call('ZADD', P .. ':lexp', fmt(expires), id)
  end
end
local parts, want = P .. ':lease:' .. id .. ':parts', P .. ':lease:' .. id .. ':want'
return {'OK', lease[2], fmt(expires - now), lease[4] or '', fmt(now), redis.call('SMEMBERS', want),
  redis.call('SDIFF', parts, want)}
