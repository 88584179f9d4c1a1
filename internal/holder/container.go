package holder

import (
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/particle-net/particle/topology"
)

// maxCalls is how many calls of one container are answered at once. More wait: a
// container that fills the table must not fill the host.
const maxCalls = 64

// container is what the holder knows of one. Its processes have a listener each that
// was started by the runtime.
type container struct {
	id    topology.ContainerID
	dir   string
	faces *faces

	denied struct{ binds, connects atomic.Uint64 }

	// The server's lock guards these.
	listeners int
	calls     int   // that are being answered
	waiting   []int // listeners that are not looked at meanwhile

	mu       sync.Mutex // guards what follows
	identity guarded
	told     bool
	ended    bool            // what is answered still is for nobody
	cut      map[uint64]bool // sockets whose successful bind was not heard of
}

// guarded is an identity with the cookie of its namespace.
type guarded struct {
	Identity
	cookie uint64
	*face
}

// known reads the identity when it is first asked for: it is written between the
// runtime's create and start.
func (c *container) known() (guarded, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.told || c.ended {
		return c.identity, c.told
	}
	i, err := readIdentity(c.dir, c.id)
	if err != nil {
		return guarded{}, false
	}
	cookie, err := namespaceCookie(i.Namespace)
	if err != nil {
		return guarded{}, false
	}
	c.identity, c.told = guarded{i, cookie, c.faces.join(i)}, true
	return c.identity, true
}

// gone is called when the last process has ended.
func (c *container) gone() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	if c.told {
		c.faces.leave(c.identity.Identity)
	}
}

// interrupted notes a socket that was bound for a caller who was called away by a
// signal and will ask again. Linux from 5.19 on waits for the answer instead.
func (c *container) interrupted(s socket) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut == nil || len(c.cut) > maxCalls {
		c.cut = map[uint64]bool{}
	}
	c.cut[s.cookie] = true
}

// repeated is a bind's result, seen by a caller who may have asked before.
func (c *container) repeated(s socket, err syscall.Errno) syscall.Errno {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.cut[s.cookie]
	delete(c.cut, s.cookie)
	if before && err == syscall.EINVAL {
		return 0
	}
	return err
}
