package process_test

import (
	"os"
	"os/exec"
	"testing"

	"github.com/particle-net/particle/internal/process"
)

func TestStartTimeFollowsTheProcess(t *testing.T) {
	table := process.Table{Root: "/proc"}
	own, ok := table.StartTime(os.Getpid())
	if !ok || own == 0 {
		t.Fatalf("own start time: %d, %v", own, ok)
	}
	child := exec.Command("cat")
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if start, ok := table.StartTime(child.Process.Pid); !ok || start < own {
		t.Fatalf("child started at %d (%v), before its parent at %d", start, ok, own)
	}
	stdin.Close()
	// Not reaped yet, the child becomes a zombie: it holds its number, not its
	// address.
	state, err := child.Process.Wait()
	if err != nil || !state.Success() {
		t.Fatal(state, err)
	}
	if _, ok := table.StartTime(child.Process.Pid); ok {
		t.Fatal("a process that has ended counts as alive")
	}
}
