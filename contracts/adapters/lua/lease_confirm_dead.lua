-- uses: base, delete
-- Free what leases of dead nodes hold, when they ended long enough ago that their holders gave up by themselves.
-- KEYS  P
-- ARGV  term, ms since the lease ended, how many leases to look at
-- reply OK id… | TERM
-- keys  P:quar ZSET ended ms, and those of lease_confirm
if not is_leader(ARGV[1]) then return {'TERM'} end
local limit = fmt(now_ms() - tonumber(ARGV[2]))
local confirmed = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. ':quar', '-inf', limit, 'LIMIT', 0, ARGV[3])) do
  local state = redis.call('HGET', P .. ':node:' .. redis.call('HGET', P .. ':lease:' .. id, 'node'), 'state')
  if not state or state == 'dead' then
    delete_lease(id)
    confirmed[#confirmed + 1] = id
  end
end
return {'OK', unpack(confirmed)}
