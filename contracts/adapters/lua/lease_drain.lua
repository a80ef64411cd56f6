-- uses: base, lease
-- The lease takes nothing new and gives back what it has. One that has not started ends at once.
-- KEYS  P
-- ARGV  term, id, revoke in ms ("" leaves the holder all the time it needs)
-- reply OK | TERM | GONE
-- keys  P:lease:<id> HASH state, revoke_at, P:lease:<id>:want SET, P:part:<topic>:want HASH
local id = ARGV[2]
if not is_leader(ARGV[1]) then return {'TERM'} end
local lease = redis.call('HMGET', P .. ':lease:' .. id, 'state', 'revoke_at', 'node')
if not lease[1] or lease[1] == 'quarantine' then return {'GONE'} end
local now = now_ms()
if lease[1] == 'reserved' then
  end_lease(id, now, 'drained')
  return {'OK'}
end
if lease[1] == 'active' then
  redis.call('HSET', P .. ':lease:' .. id, 'state', 'draining')
  clear_wants(id, now)
  event('drain', 'lease', id, 'node', lease[3])
end
if ARGV[3] ~= '' then
  local revoke = math.min(now + tonumber(ARGV[3]), tonumber(lease[2] or '9e15'))
  redis.call('HSET', P .. ':lease:' .. id, 'revoke_at', fmt(revoke))
end
return {'OK'}
