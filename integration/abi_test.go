package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
)

// socketsPrograms are the builds of integration/sockets that this kernel runs.
func socketsPrograms(t *testing.T) []string {
	t.Helper()
	ok, err := runs32()
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		return []string{"sockets"}
	}
	return []string{"sockets", "sockets386"}
}

// runs32 says whether this kernel runs programs of 32 bits. One that was built without
// CONFIG_IA32_EMULATION, is told ia32_emulation=off or has its memory encrypted (since
// Linux 6.7) does not, and nobody comes to it by their entries.
var runs32 = sync.OnceValues(func() (bool, error) {
	out, err := exec.Command(program("sockets386")).CombinedOutput()
	var exit *exec.ExitError
	switch {
	case bytes.Contains(out, []byte("usage:")):
		return true, nil
	case errors.Is(err, syscall.ENOEXEC), errors.As(err, &exit) && !exit.Exited():
		fmt.Fprintln(os.Stderr, "integration: this kernel runs no programs of 32 bits, so nothing is tried with them:", err)
		return false, nil
	}
	return false, fmt.Errorf("sockets386: %w: %s", err, out)
})
