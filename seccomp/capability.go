package seccomp

import (
	"strings"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/seccomp/rawjson"
)

// IsUnshareable tells the capabilities that nobody may hold in a shared namespace:
//
//   - NET_ADMIN changes its links, routes and rules;
//   - NET_RAW opens packet sockets, which see and forge the traffic of every
//     neighbour;
//   - SYS_ADMIN mounts proc, whose settings are the namespace's, and cgroup2, by
//     which a process leaves the cgroup that the address guard knows it by.
//
// Others reach further than any network namespace (SYS_MODULE, SYS_RAWIO, PERFMON,
// SYS_PTRACE beside the host's processes, DAC_READ_SEARCH): one of the container's
// own would bar nothing, and they are no more here than on Docker's bridge. BPF
// alone opens neither maps nor programs by their numbers (that is SYS_ADMIN's), and
// attaches none to a cgroup or a link (NET_ADMIN's).
//
// Names are taken with and without "CAP_", in any case, as Docker takes them.
func IsUnshareable(name string) bool {
	name = strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	return name == "NET_ADMIN" || name == "NET_RAW" || name == "SYS_ADMIN"
}

// Confine takes those capabilities away from a process that joins a running
// container. The process is an OCI process, which `runc exec` reads from the
// file named by --process; it brings capabilities of its own.
func Confine(process []byte) ([]byte, error) {
	top, err := rawjson.Root(process)
	e := edit{rawjson.NewEdit(process), process}
	if err == nil {
		err = e.confine(top)
	}
	if err != nil {
		return nil, &fault.Error{Op: "edit OCI process", Err: err}
	}
	return e.Apply(), nil
}

func (e edit) confine(process rawjson.Span) error {
	return rawjson.Members(e.doc, process, func(key string, value rawjson.Span) error {
		if !strings.EqualFold(key, "capabilities") {
			return nil
		}
		// Every set, by whatever name: a set added to the specification later
		// must not bring the capabilities back.
		return rawjson.Members(e.doc, value, func(_ string, set rawjson.Span) error {
			return e.Drop(set, func(_ string, value rawjson.Span) (bool, error) {
				name, err := rawjson.Text(e.doc, value)
				return IsUnshareable(name), err
			})
		})
	})
}
