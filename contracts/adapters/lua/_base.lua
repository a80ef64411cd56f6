-- Shared by the pool's scripts; put before a script that says "uses: base".
-- P is the root of the pool's keys; all of them share its hash tag. Times are the server's, in milliseconds.
local P = KEYS[1]

-- Lua prints numbers from 10^14 upwards in exponent form: tokens and times leave only through this.
local function fmt(number)
  return string.format('%.0f', number)
end

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- max(last + 1, now): rises strictly, and goes on rising when the data set was lost and the counter with it.
local function next_token(now)
  local last = tonumber(redis.call('GET', P .. ':tok') or '0')
  local token = fmt(math.max(last + 1, now))
  redis.call('SET', P .. ':tok', token)
  return token
end

-- The incarnation of this data set: made once, so a change of it tells that the data was lost.
local function epoch(now)
  local current = redis.call('GET', P .. ':epoch')
  if not current then
    current = next_token(now)
    redis.call('SET', P .. ':epoch', current)
  end
  return current
end

local function event(kind, ...)
  redis.call('XADD', P .. ':ev', 'MAXLEN', '~', '10000', '*', 'kind', kind, ...)
end

local function is_leader(term)
  return redis.call('HGET', P .. ':leader', 'term') == term
end
