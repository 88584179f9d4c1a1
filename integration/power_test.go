package integration

import (
	"context"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/particle-net/particle/internal/lab"
)

// cmdPower: power off|on|new. A host that is off is as if its plug were pulled; a
// new one is another machine of its name and addresses, without the plugin.
func cmdPower(ts *testscript.TestScript, _ bool, args []string) {
	ctx, host := context.Background(), sessionOf(ts).bed.host
	switch strings.Join(args, " ") {
	case "off":
		ts.Check(host.PowerOff(ctx))
	case "on":
		ts.Check(host.Reboot(ctx))
	case "new":
		ts.Check(host.Replace(ctx))
		ts.Check(lab.LoadImageWith(ctx, host, program("probe")))
	default:
		ts.Fatalf("usage: power off|on|new")
	}
}
