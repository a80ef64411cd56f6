-- uses: base
-- Give leadership up, so that a standby need not wait for it to lapse.
-- KEYS  P
-- ARGV  holder, term
-- reply OK | TERM
-- keys  P:leader HASH holder, term, exp
local leader = redis.call('HMGET', P .. ':leader', 'holder', 'term')
if leader[1] ~= ARGV[1] or leader[2] ~= ARGV[2] then return {'TERM'} end
redis.call('DEL', P .. ':leader')
event('leader', 'detail', '')
return {'OK'}
