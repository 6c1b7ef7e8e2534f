// SPDX-License-Identifier: Apache-2.0

package credentials

// Rule lets identities in, or keeps them out.
type Rule struct {
	Match string
	Glob  bool // * in Match stands for any text, ? for any one character
	Allow bool
}

// Rules decide who comes in: the first one that matches, else Otherwise.
type Rules struct {
	List      []Rule
	Otherwise bool // let in whoever no rule matches
}

// Allow says whether somebody may come in.
func (r Rules) Allow(identity string) bool {
	for _, rule := range r.List {
		if rule.Match == identity || rule.Glob && glob([]rune(rule.Match), []rune(identity)) {
			return rule.Allow
		}
	}
	return r.Otherwise
}

// glob matches without trying more than one star at a time, so its time is bounded by the product of the lengths.
func glob(pattern, text []rune) bool {
	p, t, star, mark := 0, 0, -1, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark, p = p, t, p+1
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[t]):
			p, t = p+1, t+1
		case star >= 0:
			mark++
			p, t = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
