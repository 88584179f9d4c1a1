package seccomp

import (
	"bytes"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/seccomp/rawjson"
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
//   - the capabilities of IsUnshareable, from all sets;
//   - writing to the namespace's settings in the container's /proc, which Docker
//     leaves open with systempaths=unconfined. To root of the host they are open
//     without any capability;
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

// edit is an edit of doc.
type edit struct {
	*rawjson.Edit
	doc []byte
}

func share(spec []byte, s Sharing) ([]byte, error) {
	top, err := rawjson.Root(spec)
	if err != nil {
		return nil, err
	}
	e := edit{rawjson.NewEdit(spec), spec}
	placed, annotated := false, false
	err = rawjson.Members(spec, top, func(key string, value rawjson.Span) error {
		switch {
		case strings.EqualFold(key, "process"):
			return e.confine(value)
		case strings.EqualFold(key, "linux"):
			if value.Kind(spec) != '{' {
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
		e.Insert(top, append([]byte(`"annotations":`), text...))
	}
	return e.Apply(), nil
}

func (e edit) linux(linux rawjson.Span, path string) error {
	missing := map[string][]byte{
		"namespaces": append(append([]byte(`"namespaces":[`), networkEntry(path)...), ']'),
		"sealed":     append(append([]byte(`"readonlyPaths":[`), rawjson.Quote(nil, netSettings)...), ']'),
	}
	err := rawjson.Members(e.doc, linux, func(key string, value rawjson.Span) error {
		switch {
		case strings.EqualFold(key, "namespaces"):
			delete(missing, "namespaces")
			return e.namespaces(value, path)
		case strings.EqualFold(key, "readonlyPaths"):
			delete(missing, "sealed")
			return e.seal(value)
		case strings.EqualFold(key, "sysctl"):
			return e.Drop(value, func(key string, _ rawjson.Span) (bool, error) { return IsNetSysctl(key), nil })
		}
		return nil
	})
	var members [][]byte
	for _, key := range slices.Sorted(maps.Keys(missing)) {
		members = append(members, missing[key])
	}
	if err == nil && len(members) > 0 {
		e.Insert(linux, bytes.Join(members, []byte{','}))
	}
	return err
}

// netSettings are the parameters of the network namespace of whoever looks.
const netSettings = "/proc/sys/net"

// seal makes netSettings read-only, unless what it is part of is so already. The
// mount that does it also keeps user namespaces from mounting proc without it.
func (e edit) seal(paths rawjson.Span) error {
	if paths.Kind(e.doc) != '[' { // null
		e.Replace(paths, append(append([]byte{'['}, rawjson.Quote(nil, netSettings)...), ']'))
		return nil
	}
	have, err := rawjson.Texts(e.doc, paths)
	if err == nil && !slices.Contains(have, "/proc/sys") && !slices.Contains(have, netSettings) {
		e.Insert(paths, rawjson.Quote(nil, netSettings))
	}
	return err
}

func networkEntry(path string) []byte {
	return append(append([]byte(`{"type":"network","path":`), rawjson.Quote(nil, path)...), '}')
}

func (e edit) namespaces(array rawjson.Span, path string) error {
	found := false
	err := rawjson.Elements(e.doc, array, func(entry rawjson.Span) error {
		ns, err := namespaceOf(e.doc, entry)
		if err != nil || ns.kind != "network" {
			return err
		}
		found = true
		for _, at := range ns.pathAt {
			if e.doc[at.Start] != '"' || ns.path != path {
				e.Replace(at, rawjson.Quote(nil, path))
			}
		}
		if len(ns.pathAt) == 0 {
			e.Insert(entry, append([]byte(`"path":`), rawjson.Quote(nil, path)...))
		}
		return nil
	})
	switch {
	case err != nil || found:
	case array.Kind(e.doc) == '[':
		e.Insert(array, networkEntry(path))
	default: // null
		e.Replace(array, append(append([]byte{'['}, networkEntry(path)...), ']'))
	}
	return err
}

// IsNetSysctl tells the kernel parameters of the network namespace. The runtime
// takes dots and slashes as separators.
func IsNetSysctl(key string) bool {
	return strings.HasPrefix(key, "net.") || strings.HasPrefix(key, "net/")
}

func (e edit) hooks(hooks rawjson.Span) error {
	return rawjson.Members(e.doc, hooks, func(key string, value rawjson.Span) error {
		if !strings.EqualFold(key, "prestart") && !strings.EqualFold(key, "createRuntime") {
			return nil
		}
		return e.Drop(value, func(_ string, hook rawjson.Span) (bool, error) { return isSetKey(e.doc, hook) })
	})
}

func isSetKey(doc []byte, hook rawjson.Span) (bool, error) {
	match := false
	err := rawjson.Members(doc, hook, func(key string, args rawjson.Span) error {
		if !strings.EqualFold(key, "args") {
			return nil
		}
		first := true
		return rawjson.Elements(doc, args, func(arg rawjson.Span) error {
			if !first {
				return nil
			}
			first = false
			name, err := rawjson.Text(doc, arg)
			match = name == setKeyHook
			return err
		})
	})
	return match, err
}

func (e edit) resolvConf(mounts rawjson.Span, path string) error {
	if path == "" {
		return nil
	}
	return rawjson.Elements(e.doc, mounts, func(mount rawjson.Span) error {
		destination := ""
		var sources []rawjson.Span
		err := rawjson.Members(e.doc, mount, func(key string, value rawjson.Span) (err error) {
			switch {
			case strings.EqualFold(key, "destination"):
				destination, err = rawjson.Text(e.doc, value)
			case strings.EqualFold(key, "source"):
				sources = append(sources, value)
			}
			return err
		})
		if err != nil || filepath.Clean(destination) != ResolvConf {
			return err
		}
		for _, at := range sources {
			old, err := rawjson.Text(e.doc, at)
			if err != nil {
				return err
			}
			if old != path {
				e.Replace(at, rawjson.Quote(nil, path))
			}
		}
		return nil
	})
}

// annotations compares before it writes, so that a second edit changes nothing.
func (e edit) annotations(object rawjson.Span, want map[string]string) error {
	var kept [][]byte
	same := 0 // members that are as wanted
	changed := false
	err := rawjson.Members(e.doc, object, func(key string, value rawjson.Span) error {
		wanted, ours := want[key]
		if !ours {
			kept = append(kept, append(append(rawjson.Quote(nil, key), ':'), e.doc[value.Start:value.End]...))
			return nil
		}
		have, err := rawjson.Text(e.doc, value)
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
		e.Replace(object, text)
	}
	return nil
}

// annotationsText is nil if there is nothing to say.
func annotationsText(kept [][]byte, want map[string]string) []byte {
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if want[key] != "" {
			kept = append(kept, append(append(rawjson.Quote(nil, key), ':'), rawjson.Quote(nil, want[key])...))
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
