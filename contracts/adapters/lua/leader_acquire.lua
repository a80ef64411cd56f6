-- uses: base
-- Become or stay the leader. The term rises with every change of leader and whenever leadership had lapsed.
-- KEYS  P
-- ARGV  holder (unique to the process), ttl ms
-- reply OK term expires epoch | NO holder
-- keys  P:leader HASH holder, term, exp
local holder, ttl = ARGV[1], tonumber(ARGV[2])
local now = now_ms()
local leader = redis.call('HMGET', P .. ':leader', 'holder', 'term', 'exp')
local is_live = leader[3] and tonumber(leader[3]) > now
if is_live and leader[1] ~= holder then return {'NO', leader[1]} end
local current = epoch(now)
local term = is_live and leader[2] or next_token(now)
local expires = fmt(now + ttl)
redis.call('HSET', P .. ':leader', 'holder', holder, 'term', term, 'exp', expires)
if not is_live then event('leader', 'detail', holder) end
return {'OK', term, expires, current}
