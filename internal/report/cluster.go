package report

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/topology"
)

// ClusterMade tells what to do after a cluster was made.
func ClusterMade(w io.Writer, m runtimeapi.ClusterMade, now time.Time) error {
	first := "This host serves a new cluster."
	switch {
	case m.Already:
		first = "This host serves a cluster already; nothing was changed."
	case m.Encryption != topology.Plain:
		first = fmt.Sprintf("This host serves a new cluster, whose hosts encrypt what they send each other for containers (%s).", m.Encryption)
	}
	return write(w, fmt.Sprintf("%s\n\n%s\nThen create a network on any of them, once:\n\n  docker network create -d particle --ipam-driver particle jobs\n", first, joining(m, now)))
}

// ClusterToken tells how hosts join.
func ClusterToken(w io.Writer, m runtimeapi.ClusterMade, now time.Time) error {
	return write(w, joining(m, now))
}

func joining(m runtimeapi.ClusterMade, now time.Time) string {
	until := "It does not expire."
	if !m.Expires.IsZero() {
		until = fmt.Sprintf("It lets hosts in for %s more.", left(m.Expires.Sub(now)))
	}
	return fmt.Sprintf(`Join other hosts with this command on each, as a member or, with --server added,
as one that serves the store too (three in all bear the loss of one):

  particle cluster join %s --token %s

The token is a secret. %s
`, m.Address, m.Token, until)
}

// left is a duration that is still to come, in hours or days.
func left(d time.Duration) string {
	switch {
	case d < 2*time.Hour:
		return fmt.Sprintf("%d minutes", int(d.Minutes()))
	case d < 72*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Round(time.Hour).Hours()))
	default:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
}

// ClusterJoined tells what a host has become.
func ClusterJoined(w io.Writer, j runtimeapi.ClusterJoined) error {
	text := "joined the cluster"
	if j.Already {
		text = "is in the cluster already; nothing was changed"
	}
	text = fmt.Sprintf("%s %s. Its store is served by %s.\n`particle cluster status` shows the hosts; networks of the cluster appear in `docker network ls`.\n",
		cmp.Or(word(j.Name), "This host"), text, cmp.Or(words(j.Servers), "nobody"))
	if j.Two {
		text += "\nThe store has two servers now, and needs both: make a third host one too, and it bears the loss of any.\n"
	}
	return write(w, text)
}

// ClusterRemoved tells that a host is out, and what is not in anybody's power to know but
// the user's: whether it may come back by what it knows.
func ClusterRemoved(w io.Writer, r runtimeapi.ClusterReply) error {
	text := fmt.Sprintf("%s is removed from the cluster.\n", word(r.Removed))
	if r.Pending {
		text += "It was alive a moment ago: what it had can be had by others half a minute after it was heard of last.\n"
	}
	if r.Authority {
		text += "It served the store, and has the key that lets hosts in. If it was broken into, it is not kept out: have all hosts leave, and make another cluster.\n"
	} else if r.Readmits {
		text += "The token that is good now lets it in again, if it is known there. If it was broken into, run `particle cluster token --rotate`.\n"
	}
	return write(w, text)
}

// ClusterRecovered tells what to do after the store was recovered.
func ClusterRecovered(w io.Writer, r runtimeapi.ClusterRecovered) error {
	text := "This host serves the store alone, with all that it knew.\n"
	if len(r.Former) > 0 {
		text += fmt.Sprintf(`No servers any more: %s. For each of them:

  if it comes back    particle cluster join ADDRESS --server     there, with this host's address
  if it does not      particle cluster remove HOST               here
`, words(r.Former))
	}
	return write(w, text)
}

// ClusterLeft tells how a host has left.
func ClusterLeft(w io.Writer, l runtimeapi.ClusterLeft) error {
	text := "This host has left its cluster, whose networks go from it as their last containers end.\n"
	switch {
	case l.Already:
		text = "This host is in no cluster; nothing was changed.\n"
	case l.Untold != "" && l.External:
		text = "This host has left its cluster, but etcd could not be told: " + l.Untold +
			"\nRun `particle cluster remove` for it on another host, or wait for a day: until then what it had is nobody's.\n"
	case l.Untold != "":
		text = "This host has left its cluster, but no server could be told: " + l.Untold +
			"\nRun `particle cluster remove` for it on a host that serves the store.\n"
	}
	if l.External {
		text += "PARTICLE_ETCD is still set, by which the host is in the cluster again when the plugin starts next: empty it with `" + hostpath.WithoutEtcd() + "`.\n"
	}
	return write(w, text)
}

// Cluster writes a cluster's hosts, store and troubled networks.
func Cluster(w io.Writer, s runtimeapi.ClusterStatus, now time.Time) error {
	var b strings.Builder
	clusterHead(&b, s, now)
	if len(s.Hosts) > 0 {
		t := table{head: []string{"HOST", "VTEP", "PORT", "STATE", "VERSION", "ROLE"}}
		for _, h := range s.Hosts {
			vtep := "-"
			if h.VTEP.IsValid() {
				vtep = h.VTEP.String()
			}
			port := "-"
			if h.Port != 0 {
				port = strconv.Itoa(int(h.Port))
			}
			name := h.Name
			if h.ID == s.Node {
				name += " (this one)"
			}
			t.add(cmp.Or(name, short(string(h.ID))), vtep, port, h.State, cmp.Or(h.Version, "-"), h.Role)
		}
		b.WriteByte('\n')
		t.write(&b)
	}
	if len(s.Store) > 0 {
		t := table{head: []string{"STORE", "STATE", "ETCD", "SIZE"}}
		for _, e := range s.Store {
			t.add(e.Endpoint, storeState(e), cmp.Or(e.Version, "-"), size(e.Size))
		}
		b.WriteByte('\n')
		t.write(&b)
	}
	for _, e := range s.Store {
		if e.Problem != "" {
			fmt.Fprintf(&b, "\n%s: %s\n", e.Endpoint, e.Problem)
		}
	}
	if len(s.Networks) > 0 {
		t := table{head: []string{"NETWORK", "VNI", "STATE", "CLAIMS", "PEERS"}}
		for _, n := range s.Networks {
			t.add(n.Name, fmt.Sprint(n.VNI), n.State, claims(n.Claims), fmt.Sprint(n.Peers))
		}
		b.WriteByte('\n')
		t.write(&b)
	}
	troubledNetworks(&b, s.Networks)
	return write(w, b.String())
}

// writeSummary tells in a few lines how a cluster is, and which of its networks are
// not as they should be.
func writeSummary(b *strings.Builder, c runtimeapi.ClusterSummary, now time.Time) {
	if c.Removed != "" {
		fmt.Fprintf(b, "cluster: %s\ncontainers here go on, and reach each other alone; what they had of the cluster can be others' by now\n", c.Removed)
		return
	}
	store := "its store answers"
	switch {
	case c.Store.Healthy:
	case c.Store.Since.IsZero():
		store = "its store has not answered yet"
	default:
		store = "its store does not answer since " + age(c.Store.Since, now)
	}
	fmt.Fprintf(b, "cluster: %s, %s alive, %d suspect; `particle cluster status` tells more\n", store, plural(c.Alive, "host"), len(c.Suspects))
	if !c.Store.Healthy {
		fmt.Fprintf(b, "what there is goes on; new networks of the cluster, and more addresses, wait for the store%s\n", because(c.Store.Problem))
	}
	if len(c.Suspects) > 0 {
		fmt.Fprintf(b, "not heard of lately, and perhaps alive: %s; one that is gone is taken out by `particle cluster remove`\n", words(c.Suspects))
	}
	troubledNetworks(b, c.Networks)
}

func because(problem string) string {
	if problem == "" {
		return ""
	}
	return ": " + problem
}

// troubledNetworks tells of each why, and what to do.
func troubledNetworks(b *strings.Builder, networks []runtimeapi.ClusterNetwork) {
	for _, n := range networks {
		if n.Problem != "" {
			fmt.Fprintf(b, "\nnetwork %s (%s): %s\n", word(n.Name), n.State, n.Problem)
		}
	}
}

func clusterHead(b *strings.Builder, s runtimeapi.ClusterStatus, now time.Time) {
	switch s.Role {
	case "none":
		b.WriteString("This host is in no cluster. Make one with `particle cluster init`, or join one with `particle cluster join`.\n")
	case "external":
		b.WriteString("The cluster is the hosts that use the etcd named by PARTICLE_ETCD.\n")
	default:
		fmt.Fprintf(b, "cluster %s, this host is a %s since %s, its certificate is good for %s\n",
			short(s.Cluster), s.Role, age(s.Joined, now), left(s.Expires.Sub(now)))
	}
	if s.Leaving {
		b.WriteString("this host is leaving the cluster\n")
	}
	if s.Encryption != topology.Plain {
		fmt.Fprintf(b, "what its hosts send each other for containers is encrypted (%s)\n", s.Encryption)
	}
	if s.Unencrypted != "" {
		fmt.Fprintf(b, "this host reaches no other, for it cannot encrypt: %s\n", s.Unencrypted)
	}
	for _, text := range []string{s.Skew, s.Problem} {
		if text != "" {
			b.WriteString(text + "\n")
		}
	}
}

func storeState(e runtimeapi.ClusterStore) string {
	switch {
	case e.Problem != "":
		return "problem"
	case e.Learner:
		return "catching up"
	case e.Leader:
		return "leader"
	default:
		return "ok"
	}
}

func size(bytes int64) string {
	if bytes == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f MB", float64(bytes)/(1<<20))
}

// ClusterChecks examines a host's part in a cluster; none if it has none.
func ClusterChecks(s runtimeapi.ClusterStatus, now time.Time) []Check {
	if s.Role == "none" {
		return nil
	}
	cluster := Check{Name: "cluster", Grade: OK, Finding: "this host is a " + s.Role}
	if s.Role == "external" {
		cluster.Finding = "etcd as PARTICLE_ETCD names it"
	}
	if s.Problem != "" {
		cluster.Grade, cluster.Finding, cluster.Remedy = Warn, s.Problem, "see `particle cluster status`"
	}
	checks := append([]Check{cluster, storeCheck(s)}, encryptionChecks(s)...)
	checks = append(checks, portChecks(s)...)
	clock := Check{Name: "clock", Grade: OK, Finding: "agrees with the cluster's"}
	if s.Skew != "" {
		clock.Grade, clock.Finding, clock.Remedy = Warn, s.Skew, "let a time service set it"
	}
	if s.Role == "external" {
		return checks
	}
	certificate := Check{Name: "certificate", Grade: OK, Finding: "good for " + left(s.Expires.Sub(now)) + ", renewed by itself"}
	switch rest := s.Expires.Sub(now); {
	case rest < 0:
		certificate.Grade, certificate.Finding = Missing, "it has expired"
		certificate.Remedy = "run `particle cluster leave --force`, and join again"
	case rest < lateRenewal:
		certificate.Grade, certificate.Finding = Warn, "it ends in "+left(rest)+" and could not be renewed"
		certificate.Remedy = "see `particle cluster status`: a server must be reached"
	}
	ports := Check{Name: "cluster ports", Grade: OK, Finding: "those of all servers are reached"}
	if len(s.Closed) > 0 {
		ports.Grade, ports.Finding = Warn, strings.Join(s.Closed, "; ")
		ports.Remedy = openPorts
	}
	return append(checks, ports, clock, certificate)
}

// encryptionChecks tell whether packets to other hosts can leave this one; none in a
// cluster that does not encrypt.
func encryptionChecks(s runtimeapi.ClusterStatus) []Check {
	if s.Encryption == topology.Plain {
		return nil
	}
	c := Check{Name: "encryption", Grade: OK, Finding: string(s.Encryption) + " between hosts"}
	if s.Unencrypted != "" {
		c.Grade, c.Finding, c.Remedy = Missing, s.Unencrypted, "until it is mended, nothing leaves this host for the others"
	}
	return []Check{c}
}

// portChecks tell at which ports other hosts are sent VXLAN, where those differ; none
// where all have one. An older plugin does not tell its own.
func portChecks(s runtimeapi.ClusterStatus) []Check {
	i := slices.IndexFunc(s.Hosts, func(h runtimeapi.ClusterHost) bool { return h.ID == s.Node })
	if i < 0 || s.Hosts[i].Port == 0 {
		return nil
	}
	own := s.Hosts[i].Port
	var differ, untold []string
	for _, h := range s.Hosts {
		switch {
		case !h.VTEP.IsValid() || h.State == "unknown":
		case h.Port == 0:
			untold = append(untold, word(h.Name))
		case h.Port != own:
			differ = append(differ, fmt.Sprintf("%s at %d", word(h.Name), h.Port))
		}
	}
	c := Check{Name: "VXLAN ports", Grade: OK, Finding: fmt.Sprintf("this host takes VXLAN at UDP %d; not so %s", own, strings.Join(differ, ", "))}
	switch {
	case len(untold) > 0 && own != topology.VXLANPort:
		c.Grade, c.Finding = Warn, fmt.Sprintf("%s did not tell at which UDP port VXLAN is taken there, and is sent it at %d, this host's", strings.Join(untold, ", "), own)
		c.Remedy = fmt.Sprintf("upgrade particle there, or set PARTICLE_VXLAN_PORT=%d there", own)
	case len(differ) == 0:
		return nil
	}
	return []Check{c}
}

const openPorts = "start the servers, and open the TCP ports from PARTICLE_CLUSTER_PORT on between the hosts (7790 to 7792)"

// lateRenewal is when a certificate should long have been renewed: a third of
// its year before its end is when that begins.
const lateRenewal = 90 * 24 * time.Hour

// storeCheck tells whether the store's ports are reached, and whether it works.
func storeCheck(s runtimeapi.ClusterStatus) Check {
	c := Check{Name: "cluster store", Grade: OK, Finding: plural(len(s.Store), "server") + " reached"}
	var bad []string
	for _, e := range s.Store {
		if e.Problem != "" {
			bad = append(bad, e.Endpoint+": "+e.Problem)
		}
	}
	switch {
	case len(s.Store) == 0:
		c.Grade, c.Finding = Warn, "no server is known"
	case len(bad) == len(s.Store):
		c.Grade, c.Finding = Missing, strings.Join(bad, "; ")
	case len(bad) > 0:
		c.Grade, c.Finding = Warn, strings.Join(bad, "; ")
	}
	if c.Grade != OK {
		c.Remedy = openPorts
		if s.Role == "external" {
			c.Remedy = "check PARTICLE_ETCD and PARTICLE_ETCD_USER, the files in /var/lib/particle/etcd-client, and etcd itself; restart the plugin after a change of the password"
		}
	}
	return c
}

// claims are as many as fit a line.
func claims(all []netip.Prefix) string {
	const most = 3
	if len(all) == 0 {
		return "-"
	}
	var text []string
	for i, p := range all {
		if i == most {
			text = append(text, fmt.Sprintf("and %d more", len(all)-most))
			break
		}
		text = append(text, p.String())
	}
	return strings.Join(text, " ")
}
