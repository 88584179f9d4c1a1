package overlay

import (
	"fmt"
	"os"

	"github.com/particle-net/particle/internal/fault"
)

// Rebind binds a namespace, such as /proc/PID/ns/net, on target, a sandbox key
// of Docker's, in place of all that was bound there; that may be the namespace
// itself. It touches the mount table alone and waits for no other call.
func (h *Host) Rebind(namespace, target string) error {
	file, err := os.Open(namespace)
	if err == nil {
		defer file.Close()
		err = unbind(target)
	}
	if err == nil {
		err = bindNew(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), target)
	}
	if err != nil {
		return &fault.Error{Op: "bind namespace of container", On: target, Err: err, Fix: "start the container again"}
	}
	return nil
}
