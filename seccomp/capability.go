package seccomp

import (
	"strings"

	"github.com/particle-net/particle/internal/fault"
)

// IsNetCapability tells the two capabilities that nobody may hold in a shared
// namespace: NET_ADMIN changes its links, routes and rules, and NET_RAW opens
// packet sockets, which see and forge the traffic of every neighbour. Names are
// taken with and without "CAP_", in any case, as Docker takes them.
func IsNetCapability(name string) bool {
	name = strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	return name == "NET_ADMIN" || name == "NET_RAW"
}

// Confine takes those capabilities away from a process that joins a running
// container. The process is an OCI process, which `runc exec` reads from the
// file named by --process; it brings capabilities of its own.
func Confine(process []byte) ([]byte, error) {
	top, err := root(process)
	e := &splices{doc: process}
	if err == nil {
		err = e.confine(top)
	}
	if err != nil {
		return nil, &fault.Error{Op: "edit OCI process", Err: err}
	}
	return e.apply(), nil
}

func (e *splices) confine(process span) error {
	return members(e.doc, process, func(key string, value span) error {
		if !strings.EqualFold(key, "capabilities") {
			return nil
		}
		// Every set, by whatever name: a set added to the specification later
		// must not bring the capabilities back.
		return members(e.doc, value, func(_ string, set span) error {
			return e.drop(set, func(_ string, value span) (bool, error) {
				name, err := text(e.doc, value)
				return IsNetCapability(name), err
			})
		})
	})
}
