package control

import (
	"maps"
	"slices"
	"time"
)

// How long a record outlives what the watch says of it, in healthy time.
const (
	withdrawnFor = 30 * time.Second
	doubtedFor   = 10 * time.Minute
	// longestStep is the most that counts as healthy between two looks at the
	// clock. A process that was stopped for longer has not listened meanwhile.
	longestStep = 5 * time.Second
)

// Standing is how far a kept record can be believed.
type Standing int

// Only a Current record is what the watch says now.
const (
	Current   Standing = iota
	Withdrawn          // taken back a moment ago (rule W)
	Doubted            // lost together with too much else (rule M)
)

// Hold keeps what a watch delivers, by the rules W, F and M. It has no clock:
// now is the reading of any that never goes back, such as the time since the
// process began, and a jump of the wall clock is no concern of it.
//
// A Hold is not safe for concurrent use.
type Hold[T any] struct {
	key    func(T) string
	kept   map[string]*T
	held   map[string]holding // those of kept that are not Current
	origin Origin

	healthy bool
	read    time.Duration // the clock at the last look
	elapsed time.Duration // healthy time so far
}

// holding is why a record is kept that the watch does not tell of, and for how long.
type holding struct {
	standing Standing
	until    time.Duration // of healthy time
	told     int64         // the revision at which it was Withdrawn; 0 if the source has none
}

// NewHold makes an empty one. key tells records apart.
func NewHold[T any](key func(T) string) *Hold[T] {
	return &Hold[T]{key: key, kept: map[string]*T{}, held: map[string]holding{}}
}

// Verdict is what an Update has led to.
type Verdict[T any] struct {
	Changed bool // some record is new, other than before, or gone
	// Grown: each record of the message is new, and no other has changed.
	Grown bool
	// Loss tells why a list was not believed; empty if it was. All that was known
	// is kept, and this host should claim again what it has.
	Loss string
	// Forgotten is what was current, and is not in the list of a store that is
	// another one, or older, than before. What a list of the same store lacks has
	// ended there, however much it is.
	Forgotten []T
}

// Remember enters what was known before a restart.
func (h *Hold[T]) Remember(all []T, origin Origin) {
	h.put(all)
	h.origin = origin
}

func (h *Hold[T]) put(all []T) {
	for _, v := range all {
		key := h.key(v)
		h.kept[key] = &v
		delete(h.held, key)
	}
}

// Update follows one message of the watch.
func (h *Hold[T]) Update(u Update[T], now time.Duration) Verdict[T] {
	before := len(h.kept)
	changed := h.Tick(now)
	if u.Down != nil {
		h.healthy = false
		return Verdict[T]{Changed: changed}
	}
	h.healthy = true
	var v Verdict[T]
	if u.Whole {
		v = h.list(u)
	} else {
		v.Changed = h.change(u)
		v.Grown = len(u.Deleted) == 0 && len(h.kept) == before+len(u.Put)
		h.origin.Revision = max(h.origin.Revision, u.Revision)
		h.origin.Mark = h.origin.Mark.Later(u.Mark)
	}
	v.Changed = v.Changed || changed
	return v
}

func (h *Hold[T]) change(u Update[T]) bool {
	changed := len(u.Put) > 0
	for _, v := range u.Deleted {
		key := h.key(v)
		if _, ok := h.kept[key]; ok && h.held[key].standing == Current {
			h.held[key] = holding{Withdrawn, h.elapsed + withdrawnFor, u.Revision}
			changed = true
		}
	}
	h.put(u.Put)
	return changed
}

// list takes a whole list. What it lacks goes by rule W, or by rule M if too
// much is lacking. A record that is held already keeps its time, so that a watch
// that breaks off again and again does not keep it for ever.
func (h *Hold[T]) list(u Update[T]) Verdict[T] {
	put := make(map[string]bool, len(u.Put))
	for _, v := range u.Put {
		put[h.key(v)] = true
	}
	for _, v := range u.Unread {
		key := h.key(v)
		put[key] = true
		delete(h.held, key)
	}
	known, missing := len(h.kept)-len(h.held), 0
	for key := range h.kept {
		if !put[key] && h.held[key].standing == Current {
			missing++
		}
	}
	v := Verdict[T]{Changed: true, Loss: h.loss(u, known, missing)}
	other := h.another(u) || h.older(u)
	gone := holding{Withdrawn, h.elapsed + withdrawnFor, u.Revision}
	if v.Loss != "" {
		gone.standing, gone.until = Doubted, h.elapsed+doubtedFor
	}
	for key, value := range h.kept {
		k := h.held[key]
		switch {
		case put[key]:
		case k.standing == Current:
			h.held[key] = gone
			if other {
				v.Forgotten = append(v.Forgotten, *value)
			}
		case k.standing == Withdrawn:
			// One that was told at a later revision was told before the loss, and is true.
			// Another may be what this very store has made up for what it had lost.
			if v.Loss != "" && k.told <= u.Revision {
				h.held[key] = holding{gone.standing, gone.until, k.told}
			}
		}
	}
	h.put(u.Put)
	h.origin = Origin{u.Instance, u.Revision, u.Mark}
	return v
}

func (h *Hold[T]) loss(u Update[T], known, missing int) string {
	switch {
	case h.another(u):
		return "the list is of another instance of the store"
	case h.older(u):
		return "the list is older than what was known"
	case known > 0 && len(u.Put)+len(u.Unread) == 0:
		return "the list is empty"
	case 2*missing > known:
		return "the list lacks more than half of what was known"
	}
	return ""
}

func (h *Hold[T]) another(u Update[T]) bool {
	return h.origin.Instance != "" && u.Instance != "" && h.origin.Instance != u.Instance
}

func (h *Hold[T]) older(u Update[T]) bool { return u.Revision != 0 && u.Revision < h.origin.Revision }

// Tick lets time pass. Call it at least every few seconds while Waiting.
func (h *Hold[T]) Tick(now time.Duration) (changed bool) {
	if h.healthy {
		h.elapsed += min(max(now-h.read, 0), longestStep)
	}
	h.read = now
	return h.drop(func(_ T, k holding) bool { return k.until <= h.elapsed })
}

// drop forgets the held records that gone names, and says whether there were any.
func (h *Hold[T]) drop(gone func(T, holding) bool) bool {
	before := len(h.held)
	maps.DeleteFunc(h.held, func(key string, k holding) bool {
		if !gone(*h.kept[key], k) {
			return false
		}
		delete(h.kept, key)
		return true
	})
	return len(h.held) != before
}

// Healthy says whether the watch delivers.
func (h *Hold[T]) Healthy() bool { return h.healthy }

// Origin is what Remember needs beside the records.
func (h *Hold[T]) Origin() Origin { return h.origin }

// Waiting says whether time will change anything.
func (h *Hold[T]) Waiting() bool { return len(h.held) > 0 }

// Count is how many records have a standing.
func (h *Hold[T]) Count(s Standing) int {
	if s == Current {
		return len(h.kept) - len(h.held)
	}
	n := 0
	for _, k := range h.held {
		if k.standing == s {
			n++
		}
	}
	return n
}

// Find gives the record of a key and how far it can be believed.
func (h *Hold[T]) Find(key string) (value T, s Standing, ok bool) {
	v := h.kept[key]
	if v == nil {
		return value, s, false
	}
	return *v, h.held[key].standing, true
}

// All lists the records of the given standings, in order of their keys.
func (h *Hold[T]) All(standings ...Standing) []T {
	all := make([]T, 0, len(h.kept))
	for _, key := range slices.Sorted(maps.Keys(h.kept)) {
		if slices.Contains(standings, h.held[key].standing) {
			all = append(all, *h.kept[key])
		}
	}
	return all
}

// Each visits the records of the given standings, in no order.
func (h *Hold[T]) Each(visit func(T), standings ...Standing) {
	for key, v := range h.kept {
		if slices.Contains(standings, h.held[key].standing) {
			visit(*v)
		}
	}
}
