package enrol

import (
	"net/netip"
	"sync"
	"time"
)

const (
	maxFailures  = 10          // wrong secrets from one address in a minute
	failureSpan  = time.Minute // for which they are counted
	maxFailing   = 4096        // addresses that are counted
	wholeNetwork = 64          // bits of an IPv6 address that stand for one host
)

// limiter slows down who guesses secrets, and has the log tell of a few refusals of each.
type limiter struct {
	mu       sync.Mutex
	failures map[netip.Addr]failures
}

func newLimiter() limiter { return limiter{failures: map[netip.Addr]failures{}} }

type failures struct {
	since time.Time
	count int
}

func source(from netip.Addr) netip.Addr {
	if from.Is6() {
		if p, err := from.Prefix(wholeNetwork); err == nil {
			return p.Addr()
		}
	}
	return from
}

// allow tells whether an address may try once more.
func (l *limiter) allow(from netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.failures[source(from)]
	return now.Sub(f.since) > failureSpan || f.count < maxFailures
}

func (l *limiter) failed(from netip.Addr, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.failures) >= maxFailing {
		clear(l.failures)
	}
	f := l.failures[source(from)]
	if now.Sub(f.since) > failureSpan {
		f = failures{since: now}
	}
	f.count++
	l.failures[source(from)] = f
}
