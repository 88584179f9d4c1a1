package shim

import (
	"errors"
	"path/filepath"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/seccomp"
)

// Values of the label particle.namespace. Without it, a container shares the
// network's namespace unless it asks for what cannot be shared.
const (
	ownNamespace    = "own"    // a namespace of its own in any case
	sharedNamespace = "shared" // the network's, or an error that says why not
)

// wantsOwn decides where the container belongs if it is one of ours: it says why it is
// to have a namespace of its own, or nothing if it is not.
func (b bundle) wantsOwn(networks []runtimeapi.NetworkRef) (reason string) {
	switch b.Namespace {
	case "":
		return unshareable(b, "", len(networks) > 1).what
	case ownNamespace:
		return "label particle.namespace=" + ownNamespace
	}
	return ""
}

// checkLabel adds what the label has to do with a refusal, if anything.
func (b bundle) checkLabel(refusal error) error {
	var f *fault.Error
	switch {
	case b.Namespace != "" && b.Namespace != sharedNamespace:
		return fault.New("start container", b.Label(), "its label particle.namespace="+b.Namespace+" means nothing",
			"give it the value own or shared, or remove it")
	case b.Namespace == sharedNamespace && errors.As(refusal, &f):
		f.Fix += "; or remove its label particle.namespace=shared, and it may get a namespace of its own"
	}
	return refusal
}

// createOwn lets the runtime make a namespace for the container, as Docker has
// asked it to. `start` has it connected to the network.
func (h *Host) createOwn(c Call, b bundle, place runtimeapi.Placement, networks []runtimeapi.NetworkRef, on, reason string) error {
	if cause, fix := impossible(c, b, on); cause != "" {
		return fault.New("start container", b.Label(), cause, fix)
	}
	s := seccomp.Sharing{Annotations: saying(map[string]string{
		annotationDir:       b.Dir,
		annotationNetwork:   string(place.Network),
		annotationNamespace: ownNamespace,
		annotationReason:    reason,
	})}
	// Docker's resolver works in such a namespace. It knows the names on other
	// networks, and asks beyond them if one of those is its way out.
	if source := b.facts.Source(seccomp.ResolvConf); len(networks) == 1 && source != "" && filepath.Dir(source) == b.Dir {
		s.ResolvConf = filepath.Join(h.Resolv, c.ID)
		if err := h.writeResolvConf(s.ResolvConf, source, b.Container, place); err != nil {
			return err
		}
	}
	return b.rewrite(seccomp.Separate, s)
}
