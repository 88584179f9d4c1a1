package seccomp

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/seccomp/rawjson"
)

// Facts are the parts of a specification that decide where a container belongs.
type Facts struct {
	Mounts []Mount
	// Network is the path of the network namespace to join. It is empty when
	// the runtime is to make a new one, and when the container has the host's.
	Network string
	// UserNamespace is true when the container has user ids of its own, so that
	// it cannot enter a namespace that belongs to the host's root.
	UserNamespace bool
}

// Mount is a file system, or a file or directory of the host, in the container.
type Mount struct {
	Destination string // in the container, cleaned
	Type        string // of the file system; "bind" for what is the host's
	Source      string // on the host
	Options     []string
}

// Bind tells what is the host's from what is mounted afresh.
func (m Mount) Bind() bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// Writable tells whether the container can write to what is mounted, and to what is
// mounted below it. "ro" is for the first alone, whatever comes along with it.
func (m Mount) Writable() (top, below bool) {
	top, below = true, true
	for _, option := range m.Options {
		switch option {
		case "ro", "rw":
			top = option == "rw"
		case "rro", "rrw":
			top, below = option == "rrw", option == "rrw"
		}
	}
	return top, below && (slices.Contains(m.Options, "rbind") || !slices.Contains(m.Options, "bind"))
}

// Source returns the host's path behind a path in the container; the later
// mount hides the earlier. It is empty if nothing is mounted there.
func (f Facts) Source(destination string) string {
	source := ""
	for _, m := range f.Mounts {
		if m.Destination == destination {
			source = m.Source
		}
	}
	return source
}

// Inspect reads the facts of a specification.
func Inspect(spec []byte) (Facts, error) {
	var f Facts
	err := inspect(spec, &f)
	if err != nil {
		return Facts{}, &fault.Error{Op: "read OCI specification", Err: err}
	}
	return f, nil
}

func inspect(spec []byte, f *Facts) error {
	top, err := rawjson.Root(spec)
	if err != nil {
		return err
	}
	return rawjson.Members(spec, top, func(key string, value rawjson.Span) error {
		switch {
		case strings.EqualFold(key, "mounts"):
			return rawjson.Elements(spec, value, func(mount rawjson.Span) error { return f.addMount(spec, mount) })
		case strings.EqualFold(key, "linux"):
			return rawjson.Members(spec, value, func(key string, value rawjson.Span) error {
				return f.addLinux(spec, key, value)
			})
		}
		return nil
	})
}

func (f *Facts) addMount(spec []byte, mount rawjson.Span) error {
	var m Mount
	err := rawjson.Members(spec, mount, func(key string, value rawjson.Span) (err error) {
		switch {
		case strings.EqualFold(key, "destination"):
			m.Destination, err = rawjson.Text(spec, value)
			m.Destination = filepath.Clean(m.Destination)
		case strings.EqualFold(key, "source"):
			m.Source, err = rawjson.Text(spec, value)
		case strings.EqualFold(key, "type"):
			m.Type, err = rawjson.Text(spec, value)
		case strings.EqualFold(key, "options"):
			m.Options, err = rawjson.Texts(spec, value)
		}
		return err
	})
	f.Mounts = append(f.Mounts, m)
	return err
}

func (f *Facts) addLinux(spec []byte, key string, value rawjson.Span) error {
	switch {
	case strings.EqualFold(key, "uidMappings"), strings.EqualFold(key, "gidMappings"):
		return rawjson.Elements(spec, value, func(rawjson.Span) error {
			f.UserNamespace = true
			return nil
		})
	case strings.EqualFold(key, "namespaces"):
		return rawjson.Elements(spec, value, func(entry rawjson.Span) error {
			ns, err := namespaceOf(spec, entry)
			switch ns.kind {
			case "network":
				f.Network = ns.path
			case "user":
				f.UserNamespace = true
			}
			return err
		})
	}
	return nil
}

// namespace is an entry of linux.namespaces.
type namespace struct {
	kind   string
	path   string
	pathAt []rawjson.Span // where the path's values are
}

func namespaceOf(spec []byte, entry rawjson.Span) (namespace, error) {
	var ns namespace
	err := rawjson.Members(spec, entry, func(key string, value rawjson.Span) (err error) {
		switch {
		case strings.EqualFold(key, "type"):
			ns.kind, err = rawjson.Text(spec, value)
		case strings.EqualFold(key, "path"):
			ns.path, err = rawjson.Text(spec, value)
			ns.pathAt = append(ns.pathAt, value)
		}
		return err
	})
	return ns, err
}
