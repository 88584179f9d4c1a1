package hostsetup

import (
	"errors"

	"github.com/particle-net/particle/internal/fault"
)

// tell takes an error apart into what was found and what to do about it.
func tell(err error, remedy string) (finding, fix string) {
	var f *fault.Error
	if !errors.As(err, &f) {
		return err.Error(), remedy
	}
	whole := *f
	if whole.Fix != "" {
		remedy = whole.Fix
	}
	whole.Fix = ""
	return whole.Error(), remedy
}
