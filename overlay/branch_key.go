package overlay

import (
	"github.com/particle-net/particle/internal/fault"
)

// Rebind binds a namespace, such as /proc/PID/ns/net, on target, a sandbox key
// of Docker's, in place of all that was bound there. It touches the mount table
// alone and waits for no other call.
func (h *Host) Rebind(namespace, target string) error {
	err := unbind(target)
	if err == nil {
		err = bindNew(namespace, target)
	}
	if err != nil {
		return &fault.Error{Op: "bind namespace of container", On: target, Err: err, Fix: "start the container again"}
	}
	return nil
}
