package integration

import (
	"context"

	"github.com/rogpeppe/go-internal/testscript"
)

// cmdPower: power off|on. A host that is off is as if its plug were pulled.
func cmdPower(ts *testscript.TestScript, _ bool, args []string) {
	host := sessionOf(ts).bed.host
	switch {
	case len(args) == 1 && args[0] == "off":
		ts.Check(host.PowerOff(context.Background()))
	case len(args) == 1 && args[0] == "on":
		ts.Check(host.Reboot(context.Background()))
	default:
		ts.Fatalf("usage: power off|on")
	}
}
