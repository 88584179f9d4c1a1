package fault_test

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/particle-net/particle/internal/fault"
)

func TestErrorText(t *testing.T) {
	for _, c := range []struct {
		err  *fault.Error
		want string
	}{
		{fault.New("create network", "blue", "VNI 42 is taken", "pass another"), "create network blue: VNI 42 is taken; pass another"},
		{fault.New("create network", "", "VNI 42 is taken", ""), "create network: VNI 42 is taken"},
		{&fault.Error{Op: "open", On: "store", Err: fs.ErrPermission}, "open store: permission denied"},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestCauseIsReachable(t *testing.T) {
	err := error(&fault.Error{Op: "open", On: "store", Err: fs.ErrPermission, Fix: "run as root"})
	if !errors.Is(err, fs.ErrPermission) {
		t.Fatal("the cause is not reachable through errors.Is")
	}
}
