package report

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Plain gives text for a terminal, in lines. Some of it comes from other hosts, and from
// containers: what is not to be read would move the cursor, clear what was said before, or
// have the terminal type. It is shown as Go would write it.
func Plain(text string) string { return escaped(text, func(r rune) bool { return r == '\n' }) }

// word gives a name for a terminal, of one line.
func word(text string) string { return escaped(text, func(rune) bool { return false }) }

func words(list []string) string {
	var all []string
	for _, one := range list {
		all = append(all, word(one))
	}
	return strings.Join(all, ", ")
}

func escaped(text string, stays func(rune) bool) string {
	var b strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		switch {
		case r == utf8.RuneError && size == 1: // a byte of no character, which some terminals obey
			fmt.Fprintf(&b, `\x%02x`, text[0])
		case unicode.IsPrint(r), stays(r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
		text = text[size:]
	}
	return b.String()
}

func write(w io.Writer, text string) error {
	_, err := io.WriteString(w, Plain(text))
	return err
}
