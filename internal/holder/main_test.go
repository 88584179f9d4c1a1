package holder_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/particle-net/particle/internal/holder"
	"github.com/particle-net/particle/internal/netnstest"
)

// dirVariable names the holder's directory to the processes that the tests start.
const dirVariable = "PARTICLE_HOLDER_TEST"

func TestMain(m *testing.M) {
	dir := os.Getenv(dirVariable)
	if dir == "" {
		os.Exit(netnstest.Main(m))
	}
	var err error
	switch os.Args[1] {
	case holder.Command:
		err = holder.Serve(dir, os.NewFile(3, "ready"))
	case handsCommand:
		err = work()
	default:
		err = live(dir)
	}
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
