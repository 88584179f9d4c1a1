package addrguard_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/particle-net/particle/internal/netnstest"
)

func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" {
		serveInside()
		return
	}
	os.Exit(netnstest.Main(leakChecked{m}))
}

// leakChecked fails a passing run that leaves goroutines behind.
type leakChecked struct{ *testing.M }

func (m leakChecked) Run() int {
	code := m.M.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			println(err.Error())
			return 1
		}
	}
	return code
}
