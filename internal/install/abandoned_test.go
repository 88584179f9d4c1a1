package install

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/particle-net/particle/internal/process"
)

func TestAbandoned(t *testing.T) {
	self := thisProcess()
	other := exec.Command("cat")
	if _, err := other.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	start, ok := process.Table{Root: "/proc"}.StartTime(other.Process.Pid)
	if !ok {
		t.Fatal("a living process has no start")
	}
	child := strings.Join([]string{thisPidSpace(), strconv.Itoa(other.Process.Pid), strconv.FormatUint(start, 10)}, " ")
	if abandoned(self) || abandoned(child) {
		t.Errorf("%q or %q counts as gone", self, child)
	}
	if !abandoned(child + "0") {
		t.Error("another process that has the pid now is taken for it")
	}
	_ = other.Process.Kill()
	_ = other.Wait()
	if !abandoned(child) {
		t.Errorf("%q counts as alive", child)
	}
	boot, rest, _ := strings.Cut(child, " ")
	for _, name := range []string{"", "nonsense", "another-" + boot + " " + rest, strings.Replace(child, " ", " 1", 1)} {
		if abandoned(name) {
			t.Errorf("%q counts as gone, although it cannot be seen from here", name)
		}
	}
}
