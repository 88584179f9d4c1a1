package holder

import "sync"

// face is what the containers have bound that share one identity, a container and
// those that joined it.
type face struct {
	ports ports
	names names
	users int
}

// faces are those in use.
type faces struct {
	mu  sync.Mutex
	all map[Identity]*face
}

func (f *faces) join(i Identity) *face {
	f.mu.Lock()
	defer f.mu.Unlock()
	one := f.all[i]
	if one == nil {
		one = &face{}
		f.all[i] = one
	}
	one.users++
	return one
}

func (f *faces) leave(i Identity) {
	f.mu.Lock()
	defer f.mu.Unlock()
	one := f.all[i]
	if one.users--; one.users == 0 {
		delete(f.all, i)
	}
}
