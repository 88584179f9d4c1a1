package seccomp

import (
	"errors"
	"strings"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/seccomp/rawjson"
)

// Separate edits the specification of a container that keeps a network
// namespace of its own: it sets ResolvConf and Annotations as Share does and
// leaves all else, capabilities, sysctls and Docker's hook among it.
// s.Namespace is not read.
func Separate(spec []byte, s Sharing) ([]byte, error) {
	top, err := rawjson.Root(spec)
	e := edit{rawjson.NewEdit(spec), spec}
	annotated := false
	if err == nil && top.Kind(spec) != '{' {
		err = errors.New("it is not an object")
	}
	if err == nil {
		err = rawjson.Members(spec, top, func(key string, value rawjson.Span) error {
			switch {
			case strings.EqualFold(key, "mounts"):
				return e.resolvConf(value, s.ResolvConf)
			case strings.EqualFold(key, "annotations"):
				annotated = true
				return e.annotations(value, s.Annotations)
			}
			return nil
		})
	}
	if err != nil {
		return nil, &fault.Error{Op: "edit OCI specification", Err: err}
	}
	if text := annotationsText(nil, s.Annotations); !annotated && text != nil {
		e.Insert(top, append([]byte(`"annotations":`), text...))
	}
	return e.Apply(), nil
}
