package seccomp

import (
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/particle-net/particle/internal/fault"
)

// ResolvConf is where a container finds its name servers.
const ResolvConf = "/etc/resolv.conf"

// setKeyHook is the first argument of the hook by which Docker <= 27 binds the
// sandbox key to the container's namespace.
const setKeyHook = "libnetwork-setkey"

// Sharing says how a container comes into a shared network namespace.
type Sharing struct {
	// Namespace is the file of the network namespace; it must not be empty.
	Namespace string
	// ResolvConf is the host's file to show as /etc/resolv.conf. Empty leaves
	// the mount as it is; without such a mount there is nothing to replace.
	ResolvConf string
	// Annotations are set in place of equally named ones; an empty value removes
	// the annotation.
	Annotations map[string]string
}

// Share moves a container into a shared network namespace and takes away what
// would let it harm the others there:
//
//   - CAP_NET_ADMIN and CAP_NET_RAW, from all capability sets;
//   - the net.* sysctls, Docker's own defaults included: they would be written
//     into the shared namespace at each container's start;
//   - Docker's set-key hook: it would start an embedded resolver whose NAT rules
//     belong to the namespace, not to the container, and Docker <= 25 would
//     switch IPv6 off in the whole namespace.
func Share(spec []byte, s Sharing) ([]byte, error) {
	out, err := share(spec, s)
	if err != nil {
		return nil, &fault.Error{Op: "edit OCI specification", Err: err}
	}
	return out, nil
}

func share(spec []byte, s Sharing) ([]byte, error) {
	top, err := root(spec)
	if err != nil {
		return nil, err
	}
	e := &splices{doc: spec}
	placed, annotated := false, false
	err = members(spec, top, func(key string, value span) error {
		switch {
		case strings.EqualFold(key, "process"):
			return e.confine(value)
		case strings.EqualFold(key, "linux"):
			if value.kind(spec) != '{' {
				return nil
			}
			placed = true
			return e.linux(value, s.Namespace)
		case strings.EqualFold(key, "hooks"):
			return e.hooks(value)
		case strings.EqualFold(key, "mounts"):
			return e.resolvConf(value, s.ResolvConf)
		case strings.EqualFold(key, "annotations"):
			annotated = true
			return e.annotations(value, s.Annotations)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !placed {
		return nil, errors.New("it has no linux section")
	}
	if text := annotationsText(nil, s.Annotations); !annotated && text != nil {
		e.insert(top, append([]byte(`"annotations":`), text...))
	}
	return e.apply(), nil
}

func (e *splices) linux(linux span, path string) error {
	found := false
	err := members(e.doc, linux, func(key string, value span) error {
		switch {
		case strings.EqualFold(key, "namespaces"):
			found = true
			return e.namespaces(value, path)
		case strings.EqualFold(key, "sysctl"):
			return e.drop(value, func(key string, _ span) (bool, error) { return IsNetSysctl(key), nil })
		}
		return nil
	})
	if err == nil && !found {
		e.insert(linux, append(append([]byte(`"namespaces":[`), networkEntry(path)...), ']'))
	}
	return err
}

func networkEntry(path string) []byte {
	return append(append([]byte(`{"type":"network","path":`), quote(path)...), '}')
}

func (e *splices) namespaces(array span, path string) error {
	found := false
	err := elements(e.doc, array, func(entry span) error {
		ns, err := namespaceOf(e.doc, entry)
		if err != nil || ns.kind != "network" {
			return err
		}
		found = true
		for _, at := range ns.pathAt {
			if e.doc[at.start] != '"' || ns.path != path {
				e.replace(at, quote(path))
			}
		}
		if len(ns.pathAt) == 0 {
			e.insert(entry, append([]byte(`"path":`), quote(path)...))
		}
		return nil
	})
	switch {
	case err != nil || found:
	case array.kind(e.doc) == '[':
		e.insert(array, networkEntry(path))
	default: // null
		e.replace(array, append(append([]byte{'['}, networkEntry(path)...), ']'))
	}
	return err
}

// IsNetSysctl tells the kernel parameters of the network namespace. The runtime
// takes dots and slashes as separators.
func IsNetSysctl(key string) bool {
	return strings.HasPrefix(key, "net.") || strings.HasPrefix(key, "net/")
}

func (e *splices) hooks(hooks span) error {
	return members(e.doc, hooks, func(key string, value span) error {
		if !strings.EqualFold(key, "prestart") && !strings.EqualFold(key, "createRuntime") {
			return nil
		}
		return e.drop(value, func(_ string, hook span) (bool, error) { return isSetKey(e.doc, hook) })
	})
}

func isSetKey(doc []byte, hook span) (bool, error) {
	match := false
	err := members(doc, hook, func(key string, args span) error {
		if !strings.EqualFold(key, "args") {
			return nil
		}
		first := true
		return elements(doc, args, func(arg span) error {
			if !first {
				return nil
			}
			first = false
			name, err := text(doc, arg)
			match = name == setKeyHook
			return err
		})
	})
	return match, err
}

func (e *splices) resolvConf(mounts span, path string) error {
	if path == "" {
		return nil
	}
	return elements(e.doc, mounts, func(mount span) error {
		destination := ""
		var sources []span
		err := members(e.doc, mount, func(key string, value span) (err error) {
			switch {
			case strings.EqualFold(key, "destination"):
				destination, err = text(e.doc, value)
			case strings.EqualFold(key, "source"):
				sources = append(sources, value)
			}
			return err
		})
		if err != nil || filepath.Clean(destination) != ResolvConf {
			return err
		}
		for _, at := range sources {
			old, err := text(e.doc, at)
			if err != nil {
				return err
			}
			if old != path {
				e.replace(at, quote(path))
			}
		}
		return nil
	})
}

// annotations compares before it writes, so that a second edit changes nothing.
func (e *splices) annotations(object span, want map[string]string) error {
	var kept [][]byte
	same := 0 // members that are as wanted
	changed := false
	err := members(e.doc, object, func(key string, value span) error {
		wanted, ours := want[key]
		if !ours {
			kept = append(kept, append(append(quote(key), ':'), e.doc[value.start:value.end]...))
			return nil
		}
		have, err := text(e.doc, value)
		if wanted != "" && have == wanted {
			same++
		} else {
			changed = true
		}
		return err
	})
	if err != nil {
		return err
	}
	set := 0
	for _, value := range want {
		if value != "" {
			set++
		}
	}
	if changed || same != set {
		text := annotationsText(kept, want)
		if text == nil {
			text = []byte("{}")
		}
		e.replace(object, text)
	}
	return nil
}

// annotationsText is nil if there is nothing to say.
func annotationsText(kept [][]byte, want map[string]string) []byte {
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if want[key] != "" {
			kept = append(kept, append(append(quote(key), ':'), quote(want[key])...))
		}
	}
	if len(kept) == 0 {
		return nil
	}
	out := []byte{'{'}
	for i, member := range kept {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, member...)
	}
	return append(out, '}')
}

// drop takes items out of an object or array; an array's items have no key.
func (e *splices) drop(container span, gone func(key string, value span) (bool, error)) error {
	var kept []span
	dropped := false
	note := func(key string, item, value span) error {
		is, err := gone(key, value)
		if is {
			dropped = true
		} else {
			kept = append(kept, item)
		}
		return err
	}
	err := elements(e.doc, container, func(value span) error { return note("", value, value) })
	if err == nil {
		err = memberSpans(e.doc, container, note)
	}
	if err == nil && dropped {
		e.keep(container, kept)
	}
	return err
}

// memberSpans visits an object's members with the place of key and value together.
func memberSpans(doc []byte, object span, visit func(key string, member, value span) error) error {
	start := skipSpace(doc, object.start+1)
	return members(doc, object, func(key string, value span) error {
		member := span{start, value.end}
		if next := skipSpace(doc, value.end); next < len(doc) {
			start = skipSpace(doc, next+1)
		}
		return visit(key, member, value)
	})
}
