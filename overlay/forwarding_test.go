package overlay_test

import (
	"strings"
	"testing"
)

// A host that forwards for nobody forwards for its networks alone; one that is a router
// already stays what it is.
func TestForwardingIsTurnedOn(t *testing.T) {
	t.Parallel()
	for before, policy := range map[string]string{"0": "DROP", "1": "ACCEPT"} {
		t.Run("ip_forward="+before, func(t *testing.T) {
			t.Parallel()
			m, _ := routed(t)
			m.Run("sh", "-c", "iptables -P FORWARD ACCEPT; echo "+before+" > /proc/sys/net/ipv4/ip_forward")
			m.tenantWithUplink4(1)
			if on := sysctl(m.Namespace, "net/ipv4/ip_forward"); on != "1" {
				t.Errorf("ip_forward is %s", on)
			}
			if rules := m.Run("iptables", "-S", "FORWARD"); !strings.HasPrefix(rules, "-P FORWARD "+policy) {
				t.Errorf("the rules are\n%s", rules)
			}
		})
	}
}
